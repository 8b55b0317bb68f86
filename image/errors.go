package image

import "errors"

// The kinds of failure that a caller can act on. Errors of this package wrap one of them with
// what was tried, on what, and the cause; test with [errors.Is]. A feature that the package does
// not have (an image for another platform, an unknown layer format) wraps [errors.ErrUnsupported].
var (
	// ErrNotFound: the registry, the layout, the archive or the store has no such image.
	ErrNotFound = errors.New("image not found")
	// ErrInvalidReference: the string is not a reference; see [ParseReference] for the rules.
	ErrInvalidReference = errors.New("invalid image reference")
	// ErrUnsafeLayer: a layer is malformed, or tries what no honest image does.
	ErrUnsafeLayer = errors.New("unsafe image layer")
	// ErrTooLarge: the image exceeds a limit of [StoreOptions].
	ErrTooLarge = errors.New("image too large")
	// ErrDigestMismatch: the bytes received are not the bytes that were asked for.
	ErrDigestMismatch = errors.New("digest mismatch")
	// ErrUnauthorized: the registry wants other credentials than those it was given, or none
	// will do. Some registries give this answer for images that do not exist.
	ErrUnauthorized = errors.New("registry denied access")
	// ErrRateLimited: the registry wants a longer pause than a pull waits for.
	ErrRateLimited = errors.New("registry limits requests")
	// ErrUnavailable: the registry cannot be reached, is silent, or fails. Later it may work.
	ErrUnavailable = errors.New("registry unavailable")
)
