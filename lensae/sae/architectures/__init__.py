"""One file per family; its name is its name on the command line.

Contract: a module exports `Trainer(d_model, d_sae, recipe, dead_window, d_out=None)`, a torch module with

    sparsity(recipe)       class method: what decides how many features fire, as text ("k32")
    initialise(x_BD, target_BD)       analytic start from a sample of normalised rows
    forward(x_BD, target_BD) -> Step  reconstruction, features, and the parts of the loss (their sum is minimised)
    progress               the share of the training that is done, set before each step
    reduced, product       the precision that the recipe asks for in the encoder's product (None: that of the rows), and
                           that of the product as it is now: evaluation has None
    hints                  names of plain numbers that one batch leaves to the next (they are kept in checkpoints)
    dead                   which features have been silent for long (lensae.sae.training.DeadFeatures)
    before_step()          what the gradients need (removing what is parallel to a unit-norm row)
    after_step()           what the parameters need (unit norm)
    calibrate(batches)     what can only be chosen after training, from a function that gives held-out rows
    sae(scale, metadata, target_scale)   the trained SAE for raw activations, when rows were multiplied by `scale`

`lensae.sae.training.Coder` has all of them but `forward`. Without target rows the rows themselves are the target; with
`d_out` it is a transcoder, which predicts target rows of that width.
"""
