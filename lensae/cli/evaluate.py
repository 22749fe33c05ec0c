"""evaluate"""

from __future__ import annotations

from lensae.cli.help import examples
from lensae.cli.options import DeviceOption, JsonOption, SaeOption, SetOption

EXAMPLES = examples("evaluate", "evaluate --sae topk-2304-k32 --json")


def command(
    set_name: SetOption = None, sae: SaeOption = None, device: DeviceOption = "auto", as_json: JsonOption = False
) -> None:
    """Measure an SAE on held-out documents: sparsity, reconstruction, and what it costs the model.

    Beside it stand as many principal components, a random SAE, and the unchanged stream. Writes evaluation.json and the
    histograms of density, activations and decoder cosines (PNG) into the SAE's folder. Any SAE in the SAELens layout
    can be measured: --sae FOLDER. A transcoder is measured on the rows that it predicts, beside linear maps.
    """
    from lensae.core.device import use_device
    from lensae.stages.evaluate.run import evaluate, summary
    from lensae.views import evaluate as view
    from lensae.views import figures
    from lensae.views.console import current, out, print_json
    from lensae.views.progress import Watch

    with use_device(device), Watch() as watch:
        report = evaluate(set_name, sae, watch)
    pictures = figures.of_evaluation(report)
    if as_json:
        print_json(summary(report) | {"figures": pictures})
    else:
        current(report.set_name, report.sae_name)
        view.show(out(), report, pictures)
