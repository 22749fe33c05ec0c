"""Which rows a transcoder predicts, and whether a pass of the model comes to them after those that it reads."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lensae.core.errors import UserError
from lensae.core.paths import SaeEntry, SetEntry, find_set
from lensae.core.program import command
from lensae.store.pairs import check_same_tokens
from lensae.store.reader import SetReader

if TYPE_CHECKING:
    from lensae.model.language_model import LanguageModel


def target_of(reader: SetReader, sae_entry: SaeEntry, cfg: dict) -> SetReader | None:
    """The set that a transcoder predicts (the SAELens layout names an output width for transcoders only), or None.

    It is the one that its training names; with another set than it was trained on, the one at its output hook beside
    that. Raises UserError when there is none, when it does not fit the transcoder, or does not hold the same tokens.
    """
    if "d_out" not in cfg:
        return None
    hook, record = cfg.get("metadata", {}).get("hook_name_out"), sae_entry.training
    trained_on = None
    if record and record.target and record.set.name == reader.entry.name:
        trained_on = record.target.name
    if not trained_on and not hook:
        raise UserError(
            f"the transcoder '{sae_entry.name}' does not say what it predicts",
            "its cfg.json needs metadata.hook_name_out",
        )
    target = SetReader(_named(reader.entry, trained_on or f"{reader.entry.path.parent.name}/{hook}"))
    target_hook = target.entry.manifest.hook
    if target.width != int(cfg["d_out"]) or hook not in (None, target_hook):
        raise UserError(
            f"the transcoder '{sae_entry.name}' predicts {cfg['d_out']} dimensions at {hook or 'another hook'}, "
            f"{target.entry.name} has {target.width} at {target_hook}",
            "choose the set it was trained on with --set",
        )
    check_same_tokens(reader, target)
    return target


def _named(entry: SetEntry, name: str) -> SetEntry:
    """The set of that name, in the store that `entry` lies in if it is there."""
    folder = entry.path.parent.parent / name
    return find_set(str(folder) if (folder / "manifest.json").is_file() else name)


def check_order(model: LanguageModel, reader: SetReader, target: SetReader) -> None:
    """Raise UserError when the model computes what is predicted before what is read: it cannot be replaced then."""
    read, predicted = reader.entry.manifest.hook, target.entry.manifest.hook
    order = model.order([read, predicted])
    if predicted not in order or read not in order:
        raise UserError(f"{model.name} does not come to both {read} and {predicted}", "choose other hooks")
    if order.index(read) > order.index(predicted):
        raise UserError(
            f"the transcoder reads {read}, which the model computes after {predicted}, what it predicts",
            "train one the other way round: "
            + command(f"train --set {target.entry.name} --target {reader.entry.name}"),
        )
