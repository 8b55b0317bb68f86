// Let code draw with matplotlib and get each figure twice: as a picture, and as
// the numbers behind it.
//
//	go run ./examples/charts -image oci:$PWD/dist/image/default:default
//	go run ./examples/charts -backend 'docker://?image=jupyter/scipy-notebook'
package main

import (
	"cmp"
	"context"
	"flag"
	"fmt"
	"log"
	"os"
	"path/filepath"

	"github.com/daytona-go/daytona"
	_ "github.com/daytona-go/daytona/backend/all"
)

const code = `
import matplotlib.pyplot as plt
fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6))
left.plot([2021, 2022, 2023, 2024], [12, 18, 27, 41], marker="o", label="north")
left.plot([2021, 2022, 2023, 2024], [20, 22, 21, 25], marker="o", label="south")
left.set(title="Stations", xlabel="Year", xticks=[2021, 2022, 2023, 2024])
left.legend()
right.bar(["red", "green", "blue"], [3, 7, 5], color=["#c44", "#4a4", "#46c"])
right.set(title="Cars", ylabel="Number")
fig.suptitle("A composite chart")
fig.tight_layout()
plt.show()

plt.pie([45, 30, 25], labels=["rent", "food", "rest"])
plt.title("Budget")
plt.show()
`

func main() {
	backend := flag.String("backend", cmp.Or(os.Getenv("DAYTONA_BACKEND"), "local://"), "`URL` of where sandboxes live")
	image := flag.String("image", "", "the image of the sandbox")
	dir := flag.String("to", ".", "`directory` for the pictures")
	flag.Parse()
	if err := run(context.Background(), *backend, *image, *dir); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, backend, image, dir string) error {
	client, err := daytona.Open(ctx, backend)
	if err != nil {
		return err
	}
	defer client.Close()
	sb, err := client.Create(ctx, daytona.Spec{Image: image, Network: daytona.NetworkPolicy{Block: true}})
	if err != nil {
		return err
	}
	r, err := sb.Interpreter().Run(ctx, code, &daytona.InterpreterOptions{Stdout: os.Stdout})
	if err != nil {
		return err
	}
	if r.Err != nil { // no matplotlib, most likely
		fmt.Println("the code failed:", r.Err)
	}
	for i, c := range r.Charts {
		fmt.Printf("%s: %s\n", c.Type, c.Title)
		for _, e := range c.Elements {
			if e.Chart != nil {
				fmt.Printf("  %s: %s, %d elements\n", e.Chart.Type, e.Chart.Title, len(e.Chart.Elements))
				continue
			}
			fmt.Printf("  %s: %.0f°\n", e.Label, e.Angle)
		}
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("chart-%d.png", i+1)), c.PNG, 0o644); err != nil {
			return err
		}
	}
	return nil
}
