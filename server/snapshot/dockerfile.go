package snapshot

import (
	"slices"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/parser"
)

// Entrypoint returns what sandboxes of a build run: the last ENTRYPOINT of its
// Dockerfile, as a list if it is written as one and else as one command; or a
// program that does nothing for ever. It fails if the Dockerfile can't be read.
func Entrypoint(dockerfile string) ([]string, error) {
	r, err := parser.Parse(strings.NewReader(dockerfile))
	if err != nil {
		return nil, invalid("The Dockerfile can't be read: %v", err)
	}
	entrypoint := []string{"sleep", "infinity"}
	from := false
	for _, n := range r.AST.Children {
		switch strings.ToLower(n.Value) {
		case "from":
			from = true
		case "entrypoint":
			var args []string
			for a := n.Next; a != nil; a = a.Next {
				args = append(args, a.Value)
			}
			if len(args) == 0 {
				continue // ENTRYPOINT [] takes the image's away
			}
			if !n.Attributes["json"] {
				args = []string{strings.Join(args, " ")}
			}
			entrypoint = slices.Clip(args)
		}
	}
	if !from {
		return nil, invalid("The Dockerfile has no FROM instruction")
	}
	return entrypoint, nil
}

// bases returns the images that a Dockerfile may read from a registry, as far as
// they are written out in it.
func bases(dockerfile string) []string {
	r, err := parser.Parse(strings.NewReader(dockerfile))
	if err != nil {
		return nil
	}
	var images, stages []string
	add := func(image string) {
		if image != "" && image != "scratch" && !strings.Contains(image, "$") && !slices.Contains(images, image) &&
			!slices.Contains(stages, strings.ToLower(image)) {
			images = append(images, image)
		}
	}
	for _, n := range r.AST.Children {
		switch strings.ToLower(n.Value) {
		case "from":
			if n.Next == nil {
				continue
			}
			add(n.Next.Value)
			if as := n.Next.Next; as != nil && strings.EqualFold(as.Value, "as") && as.Next != nil {
				stages = append(stages, strings.ToLower(as.Next.Value))
			}
		case "copy":
			for _, f := range n.Flags {
				if from, ok := strings.CutPrefix(f, "--from="); ok && strings.ContainsAny(from, "/:") {
					add(from)
				}
			}
		}
	}
	return images
}
