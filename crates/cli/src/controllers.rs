//! The controllers that a command asks: one by its admin address, or all of a cluster.
//!
//! In: arguments. Out: what each answers, with its name where there are several.
//!
//! **Invariant:** of a cluster, one controller that does not answer hides no other.

use anyhow::{Result, bail};
use k8s_openapi::api::core::v1::Pod;
use serde_json::Value;

use crate::admin;
use crate::cluster::{AgentPages, Cluster};

/// Which controllers.
#[derive(clap::Args)]
pub(crate) struct Controllers {
    /// Admin endpoint of the controller
    #[arg(long, env = "HEDDLE_ADMIN", default_value = "127.0.0.1:8080", value_name = "HOST:PORT")]
    admin: String,
    #[command(flatten)]
    cluster: Cluster,
}

/// A controller, and what it answered.
pub(crate) struct Answer {
    /// Name of its pod; none outside of a cluster.
    pub(crate) controller: Option<String>,
    /// What it said.
    pub(crate) page: Result<Value>,
}

// === impl Controllers ===

impl Controllers {
    /// Ask every controller for a page. Fails when none answers.
    pub(crate) fn ask(&self, path: &str) -> Result<Vec<Answer>> {
        if self.cluster.is_given() {
            return admin::wait_for(self.cluster.ask(path, None));
        }
        let address = self.admin.trim_start_matches("http://").trim_end_matches('/');
        Ok(vec![Answer { controller: None, page: Ok(admin::get(address, path)?) }])
    }

    /// The pods of the cluster, and a page of each agent: of those in the namespace that is given,
    /// if one is.
    pub(crate) fn agents(
        &self,
        has_agent: fn(&Pod) -> bool,
        path: &str,
    ) -> Result<(Vec<Pod>, AgentPages)> {
        admin::wait_for(self.cluster.agents(has_agent, path))
    }

    /// Ask one of those that answered before.
    pub(crate) fn ask_one(&self, controller: Option<&str>, path: &str) -> Result<Value> {
        let answers = match controller {
            Some(_) => admin::wait_for(self.cluster.ask(path, controller))?,
            None => self.ask(path)?,
        };
        answers.into_iter().next().map_or_else(|| Ok(Value::Null), |answer| answer.page)
    }

    /// The streams of every controller, each with the name of its own, in order of proxies; and
    /// what is wrong with controllers that do not answer.
    pub(crate) fn streams(&self) -> Result<(Vec<Value>, Vec<String>)> {
        let (mut streams, mut silent) = (Vec::new(), Vec::new());
        for Answer { controller, page } in self.ask("/debug/syncz")? {
            let name = controller.as_deref().unwrap_or("the controller");
            match page {
                Ok(Value::Array(of_one)) => streams.extend(of_one.into_iter().map(|mut stream| {
                    if let (Some(name), Some(stream)) = (&controller, stream.as_object_mut()) {
                        stream.insert("controller".to_owned(), Value::String(name.clone()));
                    }
                    stream
                })),
                Ok(_) => bail!("{name} answers no list of proxies; is it a heddle-controller?"),
                Err(error) => silent.push(format!(
                    "{name} does not answer, so its proxies are not in the list: {error:#}"
                )),
            }
        }
        streams.sort_by_key(|stream| stream["proxy"].to_string());
        Ok((streams, silent))
    }
}
