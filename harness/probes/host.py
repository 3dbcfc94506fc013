"""host: the machine that a run is made on, as its record tells it.

Owns: nothing. Never: looks at a target.
"""

from __future__ import annotations

import os
import platform
import resource

from reports.record import Host


def read() -> Host:
    """As this process sees it: the processors that it may use, and its own limit of descriptors."""
    return Host(
        kernel=platform.release(),
        cpus=len(os.sched_getaffinity(0)),
        python=platform.python_version(),
        nofile=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
    )
