"""Random transformers and what the papers' equations say of them: a reference that knows nothing of fxplain.

``plan.py`` draws a small architecture (streams and a list of layers). ``build.py`` makes the module that
is explained, with attention spelled in one of many ways (``spelled.py``). ``reference.py`` runs the same
weights in plain PyTorch, knows the row and column tokens of every map by construction, and takes gradients
by autograd. ``equations.py`` applies eqs. 5 to 11 of Chefer et al. (ICCV 2021) to a dense float64 matrix
over all tokens.
``compare.py`` holds the two against each other and shrinks a plan that disagrees. Only ``compare.py``
imports fxplain.

    python tests/random_models --count 2000 --seed 0

prints each disagreement with its plan and the smallest plan that still disagrees, and a summary.
"""
