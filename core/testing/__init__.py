"""The contract of a backend, public: its checks, the problems they pose, and one tolerance table.

Needs no test framework; imports neither torch nor numba.
"""

from .checks import ContractViolation as ContractViolation
from .contract import (
    ContractReport as ContractReport,
    backend_checks as backend_checks,
    check_backend as check_backend,
)
from .problems import Problem as Problem, problems as problems
from .tolerances import (
    TOLERANCES as TOLERANCES,
    Tolerance as Tolerance,
    deviation as deviation,
    tolerance as tolerance,
)
