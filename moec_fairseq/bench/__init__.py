"""Speed and memory of layer and models, compared with dense ones of the same active size and other libraries."""

import logging

# fairseq sets the root logger to INFO; matplotlib would then log where it looks for fonts
logging.getLogger("matplotlib").setLevel(logging.WARNING)
