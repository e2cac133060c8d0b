"""lrsearch: what does each way of choosing a learning rate cost, and what accuracy does it buy?"""

__version__ = "0.1.0"
