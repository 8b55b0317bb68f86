// Use a client of SSH with a sandbox: a command, and a socket inside that leads
// to us. For OpenSSH's programs there is "daytona ssh".
//
//	go run ./examples/ssh
package main

import (
	"context"
	"fmt"
	"io"
	"log"
	"strings"

	"golang.org/x/crypto/ssh"

	"github.com/daytona-go/daytona"
	_ "github.com/daytona-go/daytona/backend/local"
)

const program = `tr a-z A-Z; echo; python3 -c '
import socket
s = socket.socket(socket.AF_UNIX)
s.connect("door")
print("heard through the door:", s.recv(100).decode())'`

func main() {
	if err := run(context.Background()); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context) error {
	client, err := daytona.Open(ctx, "local://")
	if err != nil {
		return err
	}
	defer client.Close()
	sb, err := client.Create(ctx, daytona.Spec{})
	if err != nil {
		return err
	}
	// The key comes on the way that is known to lead to the sandbox, and nobody
	// has to prove anything: who can dial may log in.
	keys, err := sb.SSH().HostKeys(ctx)
	if err != nil {
		return err
	}
	key, _, _, _, err := ssh.ParseAuthorizedKey([]byte(keys[0]))
	if err != nil {
		return err
	}
	conn, err := sb.SSH().Dial(ctx, nil)
	if err != nil {
		return err
	}
	defer conn.Close()
	c, channels, requests, err := ssh.NewClientConn(conn, sb.Name(), &ssh.ClientConfig{HostKeyCallback: ssh.FixedHostKey(key)})
	if err != nil {
		return err
	}
	remote := ssh.NewClient(c, channels, requests)
	door, err := remote.Listen("unix", "door")
	if err != nil {
		return err
	}
	go func() {
		if visitor, err := door.Accept(); err == nil {
			io.WriteString(visitor, "hello")
			visitor.Close()
		}
	}()
	session, err := remote.NewSession()
	if err != nil {
		return err
	}
	session.Stdin = strings.NewReader("shout")
	out, err := session.Output(program)
	fmt.Print(string(out))
	return err
}
