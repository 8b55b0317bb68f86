//go:build linux

package lifecycle

import (
	"context"
	"errors"

	"github.com/containerd/errdefs"

	"github.com/daytona-go/daytona"
)

// EngineError turns an error of a container engine into one of the library. lost
// says that the engine does not answer.
func EngineError(engine string, lost bool, op, subject string, err error) error {
	if err == nil || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	if _, typed := errors.AsType[*daytona.Error](err); typed {
		return KernelError(op, subject, err)
	}
	var kind daytona.Kind
	switch {
	case lost:
		return &daytona.Error{Kind: daytona.KindUnavailable, Op: op, Subject: subject, Message: engine + " does not answer; does it run?", Err: err}
	case errdefs.IsNotFound(err):
		kind = daytona.KindNotFound
	case errdefs.IsInvalidArgument(err):
		kind = daytona.KindInvalid
	case errdefs.IsConflict(err), errdefs.IsAlreadyExists(err), errdefs.IsFailedPrecondition(err):
		kind = daytona.KindConflict
	default:
		return KernelError(op, subject, err)
	}
	return &daytona.Error{Kind: kind, Op: op, Subject: subject, Message: engine + " refused", Err: err}
}

// ContainerCapabilities are what root of a sandbox that is a container has; its
// other users have none.
func ContainerCapabilities() []string {
	return []string{
		"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_SETGID", "CAP_SETUID", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT",
	}
}
