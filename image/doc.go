// Package image turns references to container images and root filesystems into directories that
// an overlay mount can use as read-only lowers. It needs no daemon and no privilege: it pulls
// from registries, reads OCI layouts and Docker archives, and unpacks each layer once into a
// content-addressed [Store] that several processes may share.
//
//	store, err := image.OpenStore("/var/lib/daytona/images", nil)
//	ref, err := image.ParseReference("debian:12")
//	img, err := store.Resolve(ctx, ref, image.PullIfMissing, &image.PullOptions{HoldFor: "sandbox-1"})
//	for _, layer := range img.Layers { … layer.Dir … } // lowest first
//	defer store.Release(ctx, "sandbox-1")
//
// # On disk
//
// A store is one directory, of mode 0700:
//
//	store.json             the format and the ownership policy that its layers were unpacked with
//	lock                   flock: shared to add, exclusive to remove
//	layers/<hex>/fs        the root of one unpacked layer, named by its diffID
//	layers/<hex>/layer.json
//	images/<hex>.json      what an image is made of, named by its digest; its time is the last use
//	refs/<hex>.json        which image a reference last resolved to
//	leases/<hex>-<hex>.json  who uses an image ([Image.Hold])
//	locks/<hex>            flock: one process at a time unpacks a given layer; the others wait
//	tmp/<random>/          the work of one running operation, under its flock
//
// Everything outside tmp appears by one rename, so a process killed between any two instructions
// leaves it complete or absent. What it leaves in tmp is removed by the next [OpenStore] or
// [Store.Prune], because the kernel dropped its flock. Unless
// [StoreOptions.Sync] is set nothing is synced to the disk: after a power failure, rather than a
// kill, delete the store; it only holds what can be pulled again.
//
// # Layers
//
// A layer is unpacked in the form overlayfs wants when it is mounted with the userxattr option,
// which is what an unprivileged mount in a user namespace must use (Linux 5.11, Documentation/filesystems/
// overlayfs.rst): a removed name is a character device 0:0, which needs no privilege
// since Linux 5.8, and a replaced directory carries the attribute user.overlay.opaque=y. Such a
// store must not be mounted without userxattr: removed directories would show through.
//
// What is kept of an entry:
//
//   - Contents, symbolic links, hard links, FIFOs, modification times and permission bits.
//     Set-user-ID and set-group-ID bits are kept only when the process runs as root.
//   - Owners, when the process runs as root (changed by [StoreOptions.MapOwner] if it is set).
//     Otherwise everything belongs to the caller, unless MapOwner is set.
//   - Extended attributes user.*, and security.capability as root. All others are dropped, and
//     so is user.overlay.*, through which an image could lie to overlayfs.
//   - Device nodes are not created: a sandbox gets its own /dev.
//
// # Hostile layers
//
// Every path is resolved beneath the root of the layer by openat2(2) with RESOLVE_BENEATH,
// RESOLVE_NO_SYMLINKS and RESOLVE_NO_MAGICLINKS, never as a string. A leading slash is ignored.
// Where a directory on the way is a symbolic link of the same layer, it is followed as a process
// chrooted into the layer would follow it: an absolute target, and ".." at the top, mean the root
// of the layer. (A link that only a lower layer has is not seen: the directory is created in this
// layer and merges with, or hides, what lies below. Docker's overlay2 driver does the same.) A
// final component that is a link is replaced, not followed. A later entry of the same name wins,
// except that directories merge. A whiteout never removes what its own layer adds.
//
// Refused with [ErrUnsafeLayer]: ".." in a name or in a hard link's target; a hard link to
// something that is not a file of the layer; whiteouts of nothing, "." or ".." and whiteouts
// used as directories; a file used as a directory; empty, overlong and NUL-carrying names;
// unknown entry types; a malformed archive. Refused with [ErrTooLarge]: more than the limits of
// [StoreOptions]. An image whose /proc, /sys or /dev is anything but a directory, or whose device
// nodes and mount points below /dev are links, is refused by [Store.Resolve], because a runtime
// that mounts there would be led astray ([Image.CheckMountPoints]).
//
// # Packing
//
// [Store.Push] copies blobs from where they came from, because an unpacked layer packed again is
// another layer. [ExportLayer] packs what is new, the upper directory of an overlay, and
// [Store.Commit] makes an image of it.
//
// The package knows nothing about sandboxes, backends or servers. It works on Linux only; parsing
// references works everywhere.
package image
