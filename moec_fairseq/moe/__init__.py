"""The method in plain PyTorch: clusters, router, dispatch, experts, layer, losses. Never imports fairseq.

Shape suffixes used everywhere in this package:

====  ===================================================================
T     tokens that reach the layer, padding excluded
D     model dimension
K     dimension in which the router compares tokens and experts
N     experts of the layer
S     active experts: those that expert dropout keeps, N without dropout
C     clusters
F     hidden dimension of an expert
L, B  positions and sentences of a padded batch, in fairseq's order
L     in losses and metrics: layers
M     sums of the routing metrics for each layer
====  ===================================================================
"""
