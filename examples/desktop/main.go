// Use a program with a window as a person does: look, click, type, and keep a
// picture. Without -image the sandbox has this machine's programs, among which
// there must be Xvfb, icewm and xterm.
//
//	go run ./image/sandbox -variant desktop
//	go run ./examples/desktop -image oci:$PWD/dist/image/desktop:desktop
package main

import (
	"cmp"
	"context"
	"flag"
	"fmt"
	"image"
	"log"
	"os"
	"time"

	"github.com/daytona-go/daytona"
	_ "github.com/daytona-go/daytona/backend/all"
)

func main() {
	backend := flag.String("backend", cmp.Or(os.Getenv("DAYTONA_BACKEND"), "local://"), "`URL` of where sandboxes live")
	from := flag.String("image", "", "the image of the sandbox")
	flag.Parse()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute) // an image is unpacked first
	defer cancel()
	if err := run(ctx, *backend, *from); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, backend, from string) error {
	client, err := daytona.Open(ctx, backend)
	if err != nil {
		return err
	}
	defer client.Close()
	sb, err := client.Create(ctx, daytona.Spec{Image: from, Env: map[string]string{"VNC_RESOLUTION": "800x500"}})
	if err != nil {
		return err
	}
	desktop := sb.ComputerUse()
	if err := desktop.Start(ctx); err != nil {
		return err
	}
	// Programs that are started now have the desktop as their DISPLAY.
	xterm := sb.Process().Command(ctx, "xterm", "-geometry", "64x14+60+60", "-fa", "DejaVu Sans Mono", "-title", "Example", "-e", "sh")
	if err := xterm.Start(); err != nil {
		return err
	}
	var windows []daytona.Window
	for ; len(windows) == 0 || !windows[0].Active; time.Sleep(50 * time.Millisecond) {
		if windows, err = desktop.Windows(ctx); err != nil {
			return err
		}
	}
	fmt.Println("window:", windows[0].Title)
	if err := desktop.Click(ctx, windows[0].Bounds.Min.Add(image.Pt(100, 100)), "left", false); err != nil {
		return err
	}
	if err := desktop.Type(ctx, "echo Grüße vom Desktop | tee greeting; touch done\n", 20*time.Millisecond); err != nil {
		return err
	}
	greeting, err := sb.Process().Exec(ctx, "until [ -e done ]; do sleep 0.1; done; cat greeting", nil)
	if err != nil {
		return err
	}
	fmt.Print("written: ", greeting.Output)

	shot, err := desktop.Screenshot(ctx, image.Rectangle{}, &daytona.ScreenshotOptions{Cursor: true})
	if err != nil {
		return err
	}
	return os.WriteFile("desktop.png", shot.Data, 0o644)
}
