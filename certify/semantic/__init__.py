"""Changes to a network that make new questions: transformed images, free weights, other outputs.

Every change makes a `Graph` of ordinary operators again, so each bound method, the search and the
checker take it as it is:

* `transformed`: the network as a function of the parameters of image transformations;
* `free_weights`: chosen weights become inputs, to be perturbed or rounded;
* `with_output`: a function of the output (and the input) appended: probabilities, energies;
* `jacobian`: the gradient of one output row with respect to the input.
"""

from __future__ import annotations

from certify.semantic.edits import edited, free_weights, jacobian, transformed, with_output
from certify.semantic.transforms import TRANSFORMS, Transform

__all__ = ["TRANSFORMS", "Transform", "edited", "free_weights", "jacobian", "transformed",
           "with_output"]
