"""MoEC, Mixture of Expert Clusters, as a fairseq plug-in: ``fairseq-train --user-dir moec_fairseq``."""

import warnings

warnings.filterwarnings("ignore", category=FutureWarning, module="fairscale")  # of its own calls, at its import

from moec_fairseq.util.deferred import deferred

# needed for scores of GLUE only, and they take a quarter of the time in which a command starts
with deferred("sklearn", "sklearn.metrics", "scipy.stats"):
    from moec_fairseq import compat as compat
    from moec_fairseq import criterions as criterions
from moec_fairseq import models as models
from moec_fairseq import optim as optim
