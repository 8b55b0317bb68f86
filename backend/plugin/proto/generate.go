// Package proto is the protocol between a host and a backend plugin,
// generated from backend.proto, which documents it. It knows nothing of
// package daytona; package plugin translates.
package proto

//go:generate go run github.com/bufbuild/buf/cmd/buf@v1.75.0 generate
