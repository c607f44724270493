//! Services, their endpoints and workloads.

use super::*;

pub(super) fn service() -> impl Strategy<Value = (Arc<ObjectRef>, Row)> {
    use Protocol::{Http, Http2, Tcp, Tls, Unknown};
    let protocol = select(vec![Http, Http2, Tcp, Tcp, Tls, Unknown]);
    let what = (0..8_u8, proptest::option::of(0..2_i64));
    (service_host(), 0..2_u16, protocol, namespace(), visibility(), what).prop_map(
        |(host, port, protocol, namespace, export_to, (form, created))| {
            let name = host.split('.').next().unwrap_or_default().to_owned();
            let row = Service {
                // One host may be declared in two namespaces.
                host,
                namespace: namespace.into(),
                name: name.as_str().into(),
                created,
                addresses: (form == 1).then(|| IpAddr::from([10, 0, 0, 1])).into_iter().collect(),
                subnets: (form == 3)
                    .then(|| "10.0.0.0/24".parse().ok())
                    .flatten()
                    .into_iter()
                    .collect(),
                headless: form == 4,
                resolution: match form {
                    5 => Resolution::Original,
                    6 | 7 => Resolution::Dns,
                    _ => Resolution::Endpoints,
                },
                alias_of: (form == 7).then(|| self::host(1)),
                ports: vec![ServicePort {
                    number: 80 + port,
                    name: "http".into(),
                    protocol,
                    target: TargetPort::Number(8080),
                }],
                selector: match form {
                    0 => BTreeMap::new(),
                    _ => labels(&[("app", &name)]),
                },
                selects: if created.is_some() { Selects::All } else { Selects::Registered },
                export_to: export_to.map(|v| v.of(&namespace.into())),
            };
            // Users may declare the ports of a host in several objects.
            let of_port = if created.is_some() { format!("-{port}") } else { String::new() };
            (owner_in(namespace, "Service", &format!("{name}{of_port}")), Row::Service(row.into()))
        },
    )
}

fn declared(n: u8) -> Arc<Declared> {
    Arc::new(Declared {
        dns_name: (n == 1).then(|| "b.com".into()),
        labels: labels(&[("version", &format!("v{n}")), (TLS_MODE_LABEL, TLS_MODE)]),
        service_account: (n == 2).then(|| "sa".into()),
        locality: Locality { zone: format!("z{n}").into(), ..Locality::default() },
        weight: u32::from(n) + 1,
    })
}

pub(super) fn slice() -> impl Strategy<Value = (Arc<ObjectRef>, Row)> {
    (0..2_u8, 0..3_u8, 0..4_u8, any::<bool>(), namespace(), 0..4_u8).prop_map(
        |(n, slice, last, ready, namespace, place)| {
            let endpoint = |i: u8| Endpoint {
                addresses: vec![IpAddr::from([127, 0, 0, i])],
                ready,
                draining: !ready,
                workload: Some(format!("p{i}").into()),
                node: (place > 0).then(|| format!("n{}", i % 2).into()),
                zone: (place == 2).then(|| "z".into()),
                declared: (place == 3).then(|| declared(i)),
            };
            let row = EndpointSlice {
                namespace: namespace.into(),
                service: format!("s{n}").into(),
                ports: vec![SlicePort { name: "http".into(), number: 8080 }],
                endpoints: (0..last).map(endpoint).collect(),
            };
            (
                owner_in(namespace, "EndpointSlice", &format!("s{n}-{slice}")),
                Row::EndpointSlice(row.into()),
            )
        },
    )
}

pub(super) fn workload() -> impl Strategy<Value = (Arc<ObjectRef>, Row)> {
    (0..4_u8, 0..2_u8, 0..3_u8, namespace(), 0..4_u8, any::<bool>()).prop_map(
        |(n, app, version, namespace, form, mutual_tls)| {
            let mut own =
                labels(&[("app", &format!("s{app}")), ("version", &format!("v{version}"))]);
            if mutual_tls {
                own.insert(TLS_MODE_LABEL.into(), TLS_MODE.into());
            }
            let row = Workload {
                namespace: namespace.into(),
                name: format!("p{n}").into(),
                labels: own,
                addresses: vec![IpAddr::from([127, 0, 0, n])],
                service_account: if version == 0 { "default" } else { "sa" }.into(),
                named_ports: BTreeMap::new(),
                captured: CapturedPorts {
                    never: BTreeSet::from_iter((version == 1).then_some(8080)),
                    ..CapturedPorts::default()
                },
                node: (form == 3).then(|| "n0".into()),
                ready: form != 1,
                declared: (form == 2).then(|| declared(version)),
            };
            (owner_in(namespace, "Pod", &format!("p{n}")), Row::Workload(row.into()))
        },
    )
}
