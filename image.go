package daytona

// Images are named by strings in [Spec.Image]; package image describes the
// forms every backend takes:
//
//	debian:12                   a registry reference, pulled when missing
//	oci:/path/to/layout:tag     an OCI layout directory
//	docker-archive:/image.tar   the output of "docker save"
//	dir:/path                   a root filesystem, used read-only in place
//	tar:/rootfs.tar.gz          a root filesystem in a tarball
//
// ImageHost is one more, of backends that run on this machine.

// ImageHost names the machine's own /usr, read-only, beneath a private and
// fresh root: nothing to download, every tool of the host at hand, none of
// its data. It is the default image of the local backend.
const ImageHost = "host"
