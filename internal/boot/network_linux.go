package boot

import (
	"github.com/daytona-go/daytona/internal/network/guest"
	"golang.org/x/sys/unix"
)

// setUpUserspace makes the device of a "userspace" network and sends it to
// the engine.
func (b *booter) setUpUserspace() error {
	dev, err := guest.Setup()
	if err != nil {
		return err
	}
	defer unix.Close(dev.FD)
	return b.send(Message{Device: dev.Kind}, dev.FD)
}
