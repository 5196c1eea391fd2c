"""A small Hub that the real client talks to: repositories in memory, LFS, commits, and faults on demand."""

from tests.hub_server.faults import Fault
from tests.hub_server.server import HubServer
from tests.hub_server.storage import Repository, Storage

__all__ = ["Fault", "HubServer", "Repository", "Storage"]
