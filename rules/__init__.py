"""The mathematics: pure tensor functions, one file per paper, that know tensors and never a graph's nodes.

``rows`` holds what all of them speak of: rows of a relevancy matrix, read before a step, and their update.
``relevancy`` is Chefer et al. (ICCV 2021), ``rollout`` is attention rollout, ``raw_attention`` the last map.
"""
