//go:build linux

package main

import (
	"os"
	"slices"
	"testing"
)

// TestDockerfile demands that the Dockerfile is that of the lists.
func TestDockerfile(t *testing.T) {
	got, err := os.ReadFile("Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != dockerfile() {
		t.Error("Dockerfile is out of date: go generate ./image/sandbox")
	}
}

// TestVariants demands what the Dockerfile builds on: each variant has what the
// one before it has.
func TestVariants(t *testing.T) {
	for i, v := range variants {
		if !slices.IsSorted(v.debian) {
			t.Errorf("%s: the Debian packages are not in order", v.name)
		}
		if i == 0 {
			continue
		}
		for _, p := range variants[i-1].debian {
			if !slices.Contains(v.debian, p) {
				t.Errorf("%s lacks %s", v.name, p)
			}
		}
		if len(v.npm) < len(variants[i-1].npm) || v.npm[0].version != node.version {
			t.Errorf("%s: other npm packages than %s", v.name, variants[i-1].name)
		}
	}
}
