"""One file per format, or an entry point of the group `lensae.readers`; its name is the ending of the files it reads,
or the prefix before a colon (`hf:...`), the first sentence of its docstring its line of help.

Contract: `read(source, options) -> Iterator[Prompt]`, one document at a time and without holding the file in memory,
raising UserError that names the line (or row) of whatever cannot be read. `source` is a path, or for a prefix what
stands behind it. Texts that are blank are left to the caller to drop. A reader of what a prefix names also exports
`identity(source) -> str`, which is another whenever the content is.
"""
