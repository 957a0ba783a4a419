"""What to mind of the disk under a results folder that several machines share."""

from __future__ import annotations

from pathlib import Path

NETWORK_DISKS = ("nfs", "cifs", "smb", "lustre", "beegfs", "fuse", "9p", "afs", "gpfs", "ceph")


def disk_warning(root: Path) -> str:
    """Return what to mind where locks go over a network, '' on a local disk."""
    import psutil

    there = root.resolve()
    mounts = [disk for disk in psutil.disk_partitions(all=True) if there.is_relative_to(disk.mountpoint)]
    kind = max(mounts, key=lambda disk: len(disk.mountpoint)).fstype if mounts else ""
    if not kind.startswith(NETWORK_DISKS):
        return ""
    return (
        f"{root} lies on {kind}: cells are guarded by flock, which must reach every node (NFS from version 4 on, not "
        "mounted with nolock or local_lock; Lustre mounted with flock)"
    )
