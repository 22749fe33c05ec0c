"""One file per operation, or an entry point of the group `lensae.operations`; its name is its name on the command line,
the first sentence of its docstring its line of help.

Contract: `delta(x, sae, feature, value) -> Tensor`, what to add to the stream `x` (..., D). Because it is a difference,
x + decode(f') - decode(f) with only one feature changed, the SAE's own reconstruction error does not act. An operation
whose result does not depend on `value` says so with `takes_value = False`.
"""
