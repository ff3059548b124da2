"""The method in plain PyTorch: clusters, router, dispatch, experts, layer, losses. Never imports fairseq.

Shape suffixes used everywhere in this package:

====  =====================================================================
T     tokens that reach the layer, padding excluded
D     model dimension
K     dimension in which the router compares tokens and experts
N     experts of the layer
S     experts in play: the survivors of expert dropout, N without dropout
C     clusters
F     hidden dimension of an expert
L, B  positions and sentences of a padded batch, as fairseq orders them
====  =====================================================================
"""
