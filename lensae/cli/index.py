"""index"""

from __future__ import annotations

from lensae.cli.help import examples
from lensae.cli.options import DeviceOption, JsonOption, SaeOption, SetOption

EXAMPLES = examples("index", "index --set smollm2-135m/blocks.15.hook_resid_post")


def command(
    set_name: SetOption = None, sae: SaeOption = None, device: DeviceOption = "auto", as_json: JsonOption = False
) -> None:
    """Build the feature index that `features` and `steer` read; an interrupted build is resumed."""
    from lensae.core.device import use_device
    from lensae.stages.index import build
    from lensae.views import index as view
    from lensae.views.console import current, out, print_json
    from lensae.views.progress import Watch

    with use_device(device), Watch() as watch:
        report = build(set_name, sae, watch)
    if as_json:
        print_json(vars(report))
        return
    current(report.set_name, report.sae_name)
    view.show(out(), report)
