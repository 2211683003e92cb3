"""Where the endpoint of `shardlabel serve` listens: options of the command, beside those of the endpoint itself."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pipeline.config import LabelConfig


class Listen(BaseModel):
    """Where the endpoint listens. The same names, with dashes, are options of `shardlabel serve`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = Field(default="127.0.0.1", description="Address to listen on; 0.0.0.0 for all of this machine.")
    port: int = Field(default=8000, ge=1, le=65535, description="Port of HTTP.")
    grpc_port: int = Field(default=9000, ge=0, le=65535, description="Port of gRPC; 0 for none.")
    haproxy: bool = Field(default=True, description="Put HAProxy before the replicas, where the platform has it.")
    tls_cert: Path | None = Field(
        default=None, description="File of the certificate and its chain, PEM; both ports then speak TLS only."
    )
    tls_key: Path | None = Field(default=None, description="File of its private key, PEM.")
    address: str | None = Field(default=None, description=LabelConfig.model_fields["address"].description)

    @model_validator(mode="after")
    def _check(self) -> Listen:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("--tls-cert and --tls-key belong together: give both, or neither")
        if self.tls_cert is not None and self.address is not None:
            raise ValueError(
                "--tls-cert has no effect on a cluster, where each node's HAProxy has its own: set SHARDLABEL_TLS_CERT and "
                "SHARDLABEL_TLS_KEY on every node before `ray start` (docs/serving.md, TLS)"
            )
        if self.tls_cert is not None and not self.haproxy:
            raise ValueError("--tls-cert needs HAProxy: Serve's own gRPC proxy has no TLS; leave out --no-haproxy")
        return self

    @property
    def url(self) -> str:
        """Return where a client of this machine finds it."""
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(self.host, self.host)
        return f"{'https' if self.tls_cert else 'http'}://{host}:{self.port}"
