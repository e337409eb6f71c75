"""A run of a study and where its files are."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..hashes import json_digest
from .definition import Run, Study
from .record import Record, read_record
from .views import data_of, extractor_of

# Changes when other pictures would be made or seen otherwise, so that those of before are not taken for them.
PROTOCOL = "study-2"
# Changes when the same recipe trains to other weights. Version 1 gave times, noise and dropped labels the same random
# numbers whatever the seed, and began AdaLN-LoRA otherwise than the authors' code.
TRAINING = "training-2"
# How kernel distances are estimated; records without it have a bias of class-balanced samples.
KERNEL = "by class"


@dataclass(frozen=True)
class Job:
    """A run of a study: `out` is the study's folder of results, `work` that of all trainings."""

    name: str
    study: Study
    run: Run
    out: Path
    work: Path

    @property
    def label(self) -> str:
        """Among the runs of several studies."""
        return f"{self.name}/{self.run.name}"

    @property
    def folder(self) -> Path:
        """Of the training; studies with the same run share it, versions that train otherwise do not."""
        return self.work / json_digest({"training": TRAINING, "run": self.run.digest})[:16]

    @property
    def references(self) -> Path:
        """For what is seen in real pictures."""
        return self.work / "references"

    @property
    def record(self) -> Path:
        return self.out / "runs" / f"{self.run.name}.json"

    @property
    def real(self) -> Path:
        """What real pictures score, for all runs of the study."""
        return self.out / "real.json"

    @property
    def sheet(self) -> Path:
        """Pictures of the first seed."""
        return self.out / "sheets" / f"{self.run.variant}.png"

    @cached_property
    def sight(self) -> dict[str, Any]:
        """Which real pictures there are, and what sees them. Raises ValueError where the extractor is not installed."""
        evaluation = self.study.evaluation
        data = {view: data_of(self.study.view_recipe(view).data) for view in evaluation.views}
        extractor = extractor_of(evaluation.extractor)
        return {"protocol": PROTOCOL, "extractor_sha256": extractor.digest, "data": data}

    @cached_property
    def settings(self) -> dict[str, Any]:
        """All that the scores depend on besides the training; what is not given is left out, as in `given`."""
        scoring = self.sight | self.study.evaluation.model_dump(mode="json", exclude={"views"})
        return given({"training": TRAINING, "kernel": KERNEL} | scoring)

    def result(self, any_training: bool = False) -> Record | None:
        """The record of this run with these settings, if there is one. Raises ValueError for a damaged one.

        any_training: also one whose training another version carried out, which is to be told beside its scores.
        """
        if not self.record.is_file():
            return None
        record = read_record(self.record)
        found, wanted = given(record.settings), dict(self.settings)
        if any_training:
            for key in ("training", "kernel"):
                found.pop(key, None)
                wanted.pop(key)
        return record if (record.digest, found) == (self.run.digest, wanted) else None

    def is_done(self) -> bool:
        """Raises ValueError for a damaged record."""
        return self.result() is not None


def given(settings: Any) -> Any:
    """Settings without those that are None: one that comes new with a version then leaves older records as they are."""
    if isinstance(settings, dict):
        return {key: given(value) for key, value in settings.items() if value is not None}
    return [given(value) for value in settings] if isinstance(settings, list | tuple) else settings
