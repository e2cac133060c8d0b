# What type checkers see: in __init__.py these names are looked up when they are first used.
from lrsearch.finder import RangeTest as RangeTest
from lrsearch.finder import lr_range_test as lr_range_test
from lrsearch.notebook import Study as Study
from lrsearch.notebook import open_study as open_study
from lrsearch.restore import untouched as untouched
from lrsearch.torch_schedule import torch_scheduler as torch_scheduler

__version__: str
