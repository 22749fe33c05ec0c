"""An evaluation as a table."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table


def show(console: Console, report, pictures) -> None:
    """Every figure with its name, then where the pictures are."""
    f, loss = report.figures, report.loss
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="dim")
    table.add_column(justify="right", style="bold")
    table.add_column(style="dim")
    rows = [
        ("L0", f"{f['l0']:.1f}", f"features on per token, of {report.d_sae:,}"),
        ("explained variance", f"{f['explained_variance']:.4f}", "1 - E|x - x'|^2 / (E|x|^2 - |E x|^2)"),
        ("  per dimension", f"{f['explained_variance_per_dim']:.4f}", "the same for each dimension, averaged"),
        ("cosine", f"{f['cosine']:.4f}", "between x and its reconstruction"),
        ("shrinkage", f"{f['shrinkage']:.4f}", "E[|x'| / |x|]"),
        ("dead features", f"{f['dead_share']:.2%}", "never fire on the held-out tokens"),
        ("dense features", f"{f['dense_share']:.2%}", "fire on more than 10 % of them"),
        ("CE loss, clean", f"{loss.ce_clean:.4f}", "nats per token"),
        ("CE loss, spliced", f"{loss.ce_sae:.4f}", "the stream replaced by its reconstruction"),
        ("CE loss, zero", f"{loss.ce_zero:.4f}", "the stream replaced by zeros"),
        ("CE loss recovered", f"{loss.ce_recovered:.4f}", "(zero - spliced) / (zero - clean)"),
        ("KL, spliced", f"{loss.kl_sae:.4f}", f"zero: {loss.kl_zero:.4f}"),
        ("KL recovered", f"{loss.kl_recovered:.4f}", "1 - spliced / zero"),
    ]
    for row in rows:
        table.add_row(*row)
    console.print(table)
    console.print(
        f"[dim]on {f['rows']:,} tokens of {report.documents:,} held-out documents; losses on {loss.tokens:,} of them[/]"
    )
    for path in pictures:
        console.print(f"[dim]figure[/] {path}", soft_wrap=True)
