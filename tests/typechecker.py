"""What jaxtyping checks shapes with in tests: beartype, to which an int is a float, as to every type checker."""

from beartype import BeartypeConf, beartype

typechecked = beartype(conf=BeartypeConf(is_pep484_tower=True))
