"""experiment: a recipe from the corpus to steered text."""

from __future__ import annotations

import json

from lensae.core.paths import find_sae, find_set, list_saes

RECIPE = """
[collect]
model = "{model}"
hooks = ["blocks.4.hook_resid_post"]
max_new_tokens = 8

[train]
width = 8
k = 8
epochs = 2
batch = 256

[features]
count = 1
k = 2

[steer]
scales = [1]
samples = 1
"""


def test_a_recipe_from_end_to_end_and_again(lensae, store, model_dir, tmp_path):
    """The second time the SAE that the same recipe made from the same rows is used as it is."""
    path = tmp_path / "small.toml"
    path.write_text(RECIPE.format(model=model_dir("llama")))
    status, out, err = lensae("experiment", path)
    assert status == 0 and "explained variance" in out and "best for" in out, err
    assert all(f"$ python main.py {stage}" in err for stage in ("collect", "train", "evaluate", "index", "steer")), err
    results = json.loads((store.parent / "experiments/results/small.json").read_text())
    assert results["train"]["k"] == 8 and len(results["features"]) == 1 and len(results["steer"]["runs"]) == 4
    sae = find_sae(find_set())
    status, _out, err = lensae("experiment", path)
    assert status == 0 and "epoch 1" not in err and list_saes(find_set()) == [sae], err
