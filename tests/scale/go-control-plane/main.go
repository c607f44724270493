// A delta ADS server as people build it on go-control-plane: a SnapshotCache with one snapshot that all
// proxies share.
//
// In: resources over a control connection, as messages DeltaDiscoveryResponse behind a length of four
// bytes. Out: xDS, and a byte for each message once its snapshot is set.
package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"strconv"

	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpoint "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	server "github.com/envoyproxy/go-control-plane/pkg/server/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
)

// everybody puts all proxies into one group.
type everybody struct{}

func (everybody) ID(*core.Node) string { return "everybody" }

// messages says what a resource of a type is decoded into.
var messages = map[resource.Type]func() types.Resource{
	resource.ClusterType:     func() types.Resource { return &cluster.Cluster{} },
	resource.EndpointType:    func() types.Resource { return &endpoint.ClusterLoadAssignment{} },
	resource.ListenerType:    func() types.Resource { return &listener.Listener{} },
	resource.RouteType:       func() types.Resource { return &route.RouteConfiguration{} },
	resource.VirtualHostType: func() types.Resource { return &route.VirtualHost{} },
}

// world is what is served, by type and name.
type world struct {
	resources map[resource.Type]map[string]types.Resource
	versions  map[resource.Type]int
	snapshots cache.SnapshotCache
}

func main() {
	if len(os.Args) != 3 {
		log.Fatalf("usage: %s XDS_ADDRESS CONTROL_ADDRESS", os.Args[0])
	}
	if err := run(os.Args[1], os.Args[2]); err != nil {
		log.Fatal(err)
	}
}

func run(xds, control string) error {
	ctx := context.Background()
	w := &world{
		resources: map[resource.Type]map[string]types.Resource{},
		versions:  map[resource.Type]int{},
		snapshots: cache.NewSnapshotCache(false, everybody{}, nil),
	}
	streams, err := net.Listen("tcp", xds)
	if err != nil {
		return err
	}
	feed, err := net.Listen("tcp", control)
	if err != nil {
		return err
	}
	failed := make(chan error, 2)
	go func() { failed <- w.feed(ctx, feed) }()
	service := grpc.NewServer(grpc.MaxConcurrentStreams(1000), grpc.MaxRecvMsgSize(64<<20))
	discovery.RegisterAggregatedDiscoveryServiceServer(service, server.NewServer(ctx, w.snapshots, nil))
	go func() { failed <- service.Serve(streams) }()
	return <-failed
}

// feed takes resources until the control connection ends.
func (w *world) feed(ctx context.Context, listener net.Listener) error {
	connection, err := listener.Accept()
	if err != nil {
		return err
	}
	for {
		var length uint32
		if err := binary.Read(connection, binary.BigEndian, &length); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		bytes := make([]byte, length)
		if _, err := io.ReadFull(connection, bytes); err != nil {
			return err
		}
		var changed discovery.DeltaDiscoveryResponse
		if err := proto.Unmarshal(bytes, &changed); err != nil {
			return err
		}
		if err := w.set(ctx, changed.GetResources()); err != nil {
			return err
		}
		if _, err := connection.Write([]byte{1}); err != nil {
			return err
		}
	}
}

// set takes over what changed and makes a snapshot of it all.
func (w *world) set(ctx context.Context, changed []*discovery.Resource) error {
	touched := map[resource.Type]bool{}
	for _, entry := range changed {
		kind := entry.GetResource().GetTypeUrl()
		decode, known := messages[kind]
		if !known {
			return fmt.Errorf("%q has the unknown type %q", entry.GetName(), kind)
		}
		message := decode()
		if err := proto.Unmarshal(entry.GetResource().GetValue(), message); err != nil {
			return err
		}
		if w.resources[kind] == nil {
			w.resources[kind] = map[string]types.Resource{}
		}
		w.resources[kind][entry.GetName()] = message
		touched[kind] = true
	}
	all := map[resource.Type][]types.Resource{}
	for kind, named := range w.resources {
		for _, message := range named {
			all[kind] = append(all[kind], message)
		}
	}
	// The version of a type that did not change stays, so that it is not looked at again.
	snapshot := &cache.Snapshot{}
	for kind, resources := range all {
		if touched[kind] {
			w.versions[kind]++
		}
		at := cache.GetResponseType(kind)
		snapshot.Resources[at] = cache.NewResources(strconv.Itoa(w.versions[kind]), resources)
	}
	return w.snapshots.SetSnapshot(ctx, everybody{}.ID(nil), snapshot)
}
