"""Steering a running model: generation under an edit, and the whole command."""

from __future__ import annotations

import numpy as np
import pytest

from lensae.core import registry
from lensae.steering.edits import FeatureEdit

HOOK = "blocks.4.hook_resid_post"
OPERATIONS = registry.names("steering.operations")


@pytest.mark.parametrize("operation", OPERATIONS)
def test_cached_and_uncached_generation_agree_under_a_feature_edit(operation, orthonormal_sae, model_dir):
    from lensae import model as models
    from lensae.model.generate import Sampling, generate
    from lensae.model.score import next_token_logprobs

    model = models.load(models.resolve(str(model_dir("llama"))), [HOOK])
    prompt = model.text.encode("The tram was late again, and")
    change = FeatureEdit(HOOK, orthonormal_sae, 4, 40.0, operation, "all")
    cached = generate(model, [prompt], Sampling(12, 0.0), [0], edits=[change])[0].new_ids
    ids = list(prompt)
    for _ in cached:
        logp = next_token_logprobs(model, [ids], [change], [len(prompt)])[0]
        ids.append(int(logp[-1].argmax()))
    assert ids[len(prompt) :] == cached


@pytest.fixture(scope="module")
def report(trained):
    from lensae.stages.features import open_lookup
    from lensae.stages.steer.options import SteerOptions
    from lensae.stages.steer.run import steer

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LENSAE_STORE", str(trained))
        feature = open_lookup().index.ranked("density", 5)[3].feature
        return steer(SteerOptions(feature, (0.0, 1.0, 8.0), max_new_tokens=12, samples=2))


class TestStage:
    """The whole command's work on the small trained store."""

    def test_the_stronger_the_further(self, report):
        small, medium, large = report.steered
        assert report.baseline.kl == 0 < medium.kl < large.kl
        assert small.readback < medium.readback < large.readback

    def test_values_are_multiples_of_the_maximum(self, report):
        assert [run.value for run in report.steered] == [0.0, report.maximum, 8 * report.maximum]

    def test_controls_are_another_feature_and_a_direction(self, report):
        assert report.control_feature != report.options.feature
        assert [run.name.split()[1] for run in report.controls] == ["feature", "random"]

    def test_same_seed_same_texts(self, report, use_trained):
        from lensae.stages.steer.run import steer

        again = steer(report.options)
        assert again.baseline.texts == report.baseline.texts
        assert [r.texts for r in again.steered] == [r.texts for r in report.steered]

    def test_every_text_is_there(self, report):
        assert len(report.prompts) == len(report.baseline.texts) == 3 * 2

    def test_figures_are_numbers(self, report):
        for run in (report.baseline, *report.steered, *report.controls):
            assert np.isfinite([run.readback, run.rereading, run.kl, run.perplexity]).all()
