// Use a client of SSH with a sandbox: a command, and a connection to a server
// inside. For OpenSSH's programs there is "daytona ssh".
//
//	go run ./examples/ssh
package main

import (
	"context"
	"fmt"
	"io"
	"log"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/daytona-go/daytona"
	_ "github.com/daytona-go/daytona/backend/local"
)

func main() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := run(ctx); err != nil {
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
	remote, err := login(ctx, sb)
	if err != nil {
		return err
	}
	defer remote.Close()

	session, err := remote.NewSession()
	if err != nil {
		return err
	}
	session.Stdin = strings.NewReader("hello")
	out, err := session.Output("tr a-z A-Z")
	if err != nil {
		return err
	}
	fmt.Printf("a sandbox says: %s\n", out)

	server := sb.Process().Command(ctx, "python3", "-c", `
import socket
s = socket.socket(socket.AF_UNIX)
s.bind("server.new")
s.listen()
__import__("os").rename("server.new", "server")
s.accept()[0].sendall(b"hello through SSH")`)
	if err := server.Start(); err != nil {
		return err
	}
	conn, err := remote.Dial("unix", "server")
	for err != nil && ctx.Err() == nil { // until it is up
		time.Sleep(20 * time.Millisecond)
		conn, err = remote.Dial("unix", "server")
	}
	if err != nil {
		return err
	}
	defer conn.Close()
	said, err := io.ReadAll(conn)
	if err != nil {
		return err
	}
	fmt.Printf("a server inside says: %s\n", said)
	return nil
}

// login trusts the key that came on the way that is known to lead to the
// sandbox, and nobody has to prove anything: who can dial may log in.
func login(ctx context.Context, sb daytona.Sandbox) (*ssh.Client, error) {
	keys, err := sb.SSH().HostKeys(ctx)
	if err != nil {
		return nil, err
	}
	key, _, _, _, err := ssh.ParseAuthorizedKey([]byte(keys[0]))
	if err != nil {
		return nil, err
	}
	conn, err := sb.SSH().Dial(ctx, nil)
	if err != nil {
		return nil, err
	}
	c, channels, requests, err := ssh.NewClientConn(conn, sb.Name(), &ssh.ClientConfig{HostKeyCallback: ssh.FixedHostKey(key)})
	if err != nil {
		conn.Close()
		return nil, err
	}
	return ssh.NewClient(c, channels, requests), nil
}
