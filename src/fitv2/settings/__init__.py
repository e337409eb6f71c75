"""The settings of recipes: what there is, read from YAML and checked. Builds nothing and loads nothing heavy."""
