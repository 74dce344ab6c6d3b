"""How tests hold calls to their annotations: beartype, an int being good where a float is (PEP 484)."""

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
