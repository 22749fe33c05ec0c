"""One file per format; its name is the file name's ending.

Contract: `read(path) -> Iterator[Prompt]`, raising UserError that names the line of whatever cannot be read.
"""
