"""The section of the configuration that bounds uploaded files; `qlm_core.config_rules` checks its numbers."""

from __future__ import annotations

from qlm_core.config_section import Section


class FilesConfig(Section, frozen=True, kw_only=True):
    """Bounds on the files that clients upload and batches write.

    batch_file_bytes_max, file_bytes_max: one file of purpose batch, and of any other.
    tenant_bytes_max, tenant_files_max: all files of one tenant. total_bytes_max, total_files_max: of all tenants.
    disk_free_bytes_min: uploads leave so much of the disk free.
    uploads_max, tenant_uploads_max: uploads under way, of all tenants and of one.
    upload_idle_s_max: an upload that brings less than 64 KiB for so long is ended.
    batch_expires_s, output_expires_s: when inputs and outputs of batches expire whose client says nothing of it; 0: never.
    """

    batch_file_bytes_max: int = 209_715_200
    file_bytes_max: int = 536_870_912
    tenant_bytes_max: int = 10_737_418_240
    tenant_files_max: int = 10_000
    total_bytes_max: int = 53_687_091_200
    total_files_max: int = 100_000
    disk_free_bytes_min: int = 268_435_456
    uploads_max: int = 64
    tenant_uploads_max: int = 16
    upload_idle_s_max: float = 60.0
    batch_expires_s: float = 2_592_000.0
    output_expires_s: float = 0.0
