// Package build builds images from Dockerfiles without a daemon: BuildKit is
// linked in, and every RUN step is executed by a [Runner], which the embedded
// engine supplies. Base images come from this machine and from registries, and what is built goes into
// an image store.
//
// Package backend/local/build connects it to the engine:
//
//	import _ "github.com/daytona-go/daytona/backend/local/build"
//
// BuildKit is a large dependency; nothing else of this module needs it. The
// package knows no backend: what runs a step is an interface.
package build
