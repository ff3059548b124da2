"""How fast the layer and the models are, against dense ones of the same active size and against other libraries."""

import logging

# fairseq opens the root logger for everything; matplotlib then tells where it looks for fonts
logging.getLogger("matplotlib").setLevel(logging.WARNING)
