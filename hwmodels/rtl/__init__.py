"""RTL."""
from .unit import NoCircuit as NoCircuit
from .unit import Unit as Unit
from .unit import unit as unit
