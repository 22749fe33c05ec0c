"""One file per operation; its name is its name on the command line.

Contract: `delta(x, sae, feature, value) -> Tensor`, what to add to the stream `x` (..., D). Because it is a difference,
x + decode(f') - decode(f) with only one feature changed, the SAE's own reconstruction error does not act.
"""
