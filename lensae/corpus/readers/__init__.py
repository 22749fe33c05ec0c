"""One file per format; its name is the file name's ending, or the prefix before a colon (`hf:...`).

Contract: `read(source, options) -> Iterator[Prompt]`, one document at a time and without holding the file in memory,
raising UserError that names the line (or row) of whatever cannot be read. `source` is a path, or for a prefix what
stands behind it. Texts that are blank are left to the caller to drop. A reader of what a prefix names also exports
`identity(source) -> str`, which is another whenever the content is.
"""
