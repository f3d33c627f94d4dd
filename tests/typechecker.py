"""The type checker that tests put on all of vadapt: beartype, with int taken as float."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
