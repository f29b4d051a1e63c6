//! A thread that starts processes which must live as long as the lab: the kernel kills them when the thread that started them ends, however it ends.

use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};

use lockstep::demo::namespace::{Namespace, NamespaceError};

use crate::error::LabError;

type Work = Box<dyn FnOnce() + Send>;

/// The thread. It ends, and with it everything it started, when this value is dropped.
#[derive(Debug)]
pub struct Spawner {
    work: Sender<Work>,
}

impl Spawner {
    /// Starts the thread.
    ///
    /// # Errors
    /// The system gives none.
    pub fn new() -> Result<Spawner, LabError> {
        let (work, given) = channel::<Work>();
        std::thread::Builder::new()
            .name("lab-spawner".into())
            .spawn(move || given.into_iter().for_each(|job| job()))
            .map_err(LabError::io(|| "start a thread".into()))?;
        Ok(Spawner { work })
    }

    /// Starts `command` in the namespace that `place` picks of `holder`.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn spawn<T: Send + Sync + 'static>(
        &self,
        holder: &Arc<T>,
        place: fn(&T) -> &Namespace,
        mut command: Command,
    ) -> Result<Child, LabError> {
        let (tell, told) = channel::<Result<Child, NamespaceError>>();
        let holder = Arc::clone(holder);
        let job = Box::new(move || drop(tell.send(place(&holder).spawn(&mut command))));
        let gone = || LabError::Found("the thread that starts processes is gone".into());
        self.work.send(job).map_err(|_| gone())?;
        Ok(told.recv().map_err(|_| gone())??)
    }
}
