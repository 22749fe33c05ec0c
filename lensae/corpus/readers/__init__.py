"""One file per format, or an entry point of the group `lensae.readers`; its name is the ending of the files it reads,
or the prefix before a colon (`hf:...`), the first sentence of its docstring its line of help.

Contract: `read(source, options) -> Iterator[Prompt]`, one document at a time and without holding the file in memory,
raising UserError that names the line (or row) of whatever cannot be read. `source` is a path, or for a prefix the
text after the colon. The caller drops blank texts. A reader that is chosen by a prefix also exports
`identity(source) -> str`, which changes whenever the content does.
"""
