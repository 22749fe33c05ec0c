"""One file per format; its name is the file name's ending, or the prefix before a colon (`hf:...`).

Contract: `read(source, options) -> Iterator[Prompt]`, one document at a time and without holding the file in memory,
raising UserError that names the line (or row) of whatever cannot be read. `source` is a path, or for a prefix the
text after the colon. The caller drops blank texts. A reader that is chosen by a prefix also exports
`identity(source) -> str`, which changes whenever the content does.
"""
