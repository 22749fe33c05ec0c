"""One file per family, or an entry point of the group `lensae.architectures`; its name is its name on the command line,
the first sentence of its docstring its line of help.

Contract: a module exports `Trainer(d_model, d_sae, recipe, dead_window, d_out=None, group=SINGLE_PROCESS)`, a torch
module with

    sparsity(recipe)       class method: what sets how many features fire, as text ("k32")
    penalised_by           the field of the recipe that weighs a sparsity penalty ("l1"), or None
    saved_as               the architecture of the saved SAE in the SAELens layout
    unscaled               names of saved vectors that stay as they are when the scale of the rows is folded in
    fold_centre(vectors, shift_F)     the saved vectors of a transcoder whose centre is folded in
    initialise(x_BD, target_BD)       analytic start from a sample of normalised rows
    forward(x_BD, target_BD) -> Step  reconstruction, features, and the terms of the loss (their sum is minimised)
    progress, steps        the share of the training that is done, set before each step, and how many steps it has
    training_dtype         the precision that the recipe asks for in the encoder's product (None: that of the rows)
    product_dtype          the precision of that product in the next forward pass (None: that of the rows)
    hints                  names of plain numbers that one batch leaves to the next (they are kept in checkpoints)
    shared                 names of the tensors that do not have one row, or number, per feature
    group, own_features    the processes that train it (lensae.sae.distributed), and the features of this process
    dead                   which features have been silent for long (_dead_features.DeadFeatures)
    before_step()          what the gradients need (removing what is parallel to a unit-norm row)
    after_step()           what the parameters need (unit norm)
    calibrate(batches)     what can only be chosen after training, from a function that gives held-out rows
    as_saved(features)     the features' values as those of the saved SAE
    sae(scale, metadata, target_scale)   the trained SAE for raw activations, when rows were multiplied by `scale`

`lensae.sae.architectures._base.BaseTrainer` has all of them but `forward`. Without target rows the rows themselves are
the target; with `d_out` it is a transcoder, which predicts target rows of that width.

A `forward` that takes every figure of a whole batch from `mean_per_row`, `decode`, `count_firing`, the losses of this
package and the kernels (given `group`) can be trained by several processes as it stands; parameters of its own are as
long as `b_enc`.

Shapes: B rows, D d_model, F features.
"""
