"""Which device and which precision are chosen, on machines that have what this one may not have."""

from typing import get_args

import pytest
import torch

import fitv2
from fitv2.classes import Classes
from fitv2.distributed.ranks import check_launcher, join_processes
from fitv2.errors import UserError
from fitv2.finite import NotFinite, check_finite, check_weights
from fitv2.messages import command, counted
from fitv2.precision import Precision
from fitv2.system.device import choose_device, choose_precision, computes_bf16


@pytest.fixture
def machine(monkeypatch):
    """A machine with these numbers of CUDA and XPU devices, with MPS or without."""

    def build(cuda: int = 0, xpu: int = 0, mps: bool = False, bf16: bool = True) -> None:
        for kind, count in (("cuda", cuda), ("xpu", xpu)):
            module = getattr(torch, kind)
            monkeypatch.setattr(module, "is_available", lambda count=count: count > 0)
            monkeypatch.setattr(module, "device_count", lambda count=count: count)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: bf16)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)

    before = torch.get_float32_matmul_precision()
    yield build
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize(
    ("there", "name", "chosen", "precision"),
    [
        ({"cuda": 2}, None, "cuda", "bf16"),
        ({"cuda": 2, "bf16": False}, None, "cuda", "fp32"),
        ({"cuda": 2}, "cuda:1", "cuda:1", "bf16"),
        ({"cuda": 2}, "cpu", "cpu", "fp32"),
        ({"xpu": 1}, None, "xpu", "fp32"),
        ({"mps": True}, None, "mps", "fp32"),
        ({"mps": True}, "mps:0", "mps", "fp32"),
        ({}, None, "cpu", "fp32"),
    ],
)
def test_the_default_device_and_its_precision(machine, there, name, chosen, precision):
    machine(**there)
    device = choose_device(name)
    assert str(device) == chosen and choose_precision(None, device) == precision
    assert (torch.get_float32_matmul_precision() == "high") == (device.type == "cuda")


@pytest.mark.parametrize(
    ("there", "name", "told"),
    [
        ({}, "cuda", "no device cuda"),
        ({"cuda": 2}, "cuda:2", "cuda:0 to cuda:1"),
        ({}, "gpu", "'gpu' is not a device"),
        ({}, "", "'' is not a device"),
        ({}, "cpu:1", "no device cpu:1"),
    ],
)
def test_a_message_about_a_missing_device_lists_the_others(machine, there, name, told):
    machine(**there)
    with pytest.raises(UserError, match=told) as caught:
        choose_device(name)
    assert "cpu" in str(caught.value)


def test_processes_that_cannot_find_each_other_are_told_to_use_a_launcher(monkeypatch):
    for name, value in (("WORLD_SIZE", "2"), ("RANK", "0"), ("MASTER_ADDR", "localhost")):
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MASTER_PORT", raising=False)
    with pytest.raises(UserError, match="MASTER_PORT"):
        join_processes("cpu")


def test_one_device_is_not_for_several_processes(machine, monkeypatch):
    machine(cuda=2)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="several processes"):
        join_processes("cuda:1", None)


@pytest.mark.parametrize(
    ("variable", "value", "part"),
    [
        ("USE_FSDP", "true", "training.sharding=fsdp"),
        ("USE_DEEPSPEED", "1", "training.sharding=fsdp"),
        ("GRADIENT_ACCUMULATION_STEPS", "4", "batches_per_step"),
        ("DYNAMO_BACKEND", "inductor", "training.compile"),
        ("USE_CPU", "true", "--device cpu"),
    ],
)
def test_an_option_of_the_launcher_that_would_change_the_training_is_refused(monkeypatch, variable, value, part):
    monkeypatch.setenv(f"ACCELERATE_{variable}", value)
    with pytest.raises(UserError, match=part):
        check_launcher(torch.device("cuda"))


def test_names_of_precisions():
    assert [choose_precision(name, torch.device("cpu")) for name in get_args(Precision)] == ["fp32", "bf16"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_single_number_that_is_not_finite_is_found(dtype, value):
    numbers = torch.full((3, 5), torch.finfo(dtype).max, dtype=dtype)
    check_finite(numbers, "all")
    numbers[1, 2] = value
    with pytest.raises(NotFinite, match="weight a of b"):
        check_weights({"empty": torch.zeros(0), "whole": torch.ones(2, dtype=torch.int64), "a": numbers}, "b")


def test_counts_commands_and_suggestions():
    assert counted(1, "image") == "1 image" and counted(10_000, "class", "classes") == "10,000 classes"
    assert command("sample", "--model", "my runs/a'b") == """fitv2 sample --model 'my runs/a'"'"'b'"""
    with pytest.raises(UserError, match="did you mean animals"):
        Classes(2, {0: "animals", 1: "cars"}).number("Animals")


def test_the_package_lists_its_public_names():
    assert {"FiTPipeline", "from_official", "preset"} <= set(dir(fitv2)) == set(fitv2.__all__)
    names: dict = {}
    exec("from fitv2 import *", names)
    assert names["TokenBatch"] is fitv2.TokenBatch


def test_a_build_without_onednn_computes_no_bfloat16(monkeypatch):
    """As for Macs: the operator that knows of the processor's instructions is missing there, too."""
    monkeypatch.setattr(torch._C, "_has_mkldnn", False)
    monkeypatch.setattr(torch.ops, "mkldnn", object())
    assert not computes_bf16(torch.device("cpu")) and choose_precision("bf16", torch.device("cpu")) == "bf16"


def test_bfloat16_in_software_is_warned_of(monkeypatch, caplog):
    cpu = torch.device("cpu")
    for supported in (True, False):
        monkeypatch.setattr("fitv2.system.device.computes_bf16", lambda device, supported=supported: supported)
        assert choose_precision("bf16", cpu) == "bf16" and choose_precision(None, cpu) == "fp32"
        assert bool(caplog.messages) is not supported
